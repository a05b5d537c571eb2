"""What the library is measured by; results are JSON under bench/results."""
