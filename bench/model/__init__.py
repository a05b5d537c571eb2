"""What machine code says of a kernel before a device has run it: modelled, never measured."""
