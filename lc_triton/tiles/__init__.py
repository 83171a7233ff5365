"""The choice of a kernel's tile: its configuration as data, the devices, stored measurements, the analytic model."""
