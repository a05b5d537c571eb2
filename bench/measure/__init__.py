"""What benchmarks measure with: contests, clocks, roofs, peers."""
