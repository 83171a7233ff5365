"""Which tile a kernel runs with: the choice as data, the devices, and the analytic model that picks."""
