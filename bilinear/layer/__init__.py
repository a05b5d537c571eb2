"""The layer: functions, modules, which implementation a call runs on, and `fuse`."""
