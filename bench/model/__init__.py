"""Models a kernel's speed from its machine code; nothing here is measured."""
