"""The choice of a kernel's tile: its configuration as data, the devices, tiles on file, the analytic model."""
