"""Attacks results folders and input with random cases: `python -m bench.campaign`.

Six parts: processes killed in the middle of their work (`kills`), two processes on one folder
(`pairs`), damaged files (`damages`), folders read with flipped bytes (`flips`), malformed command
lines (`commands`) and malformed calls (`calls`). All cases are drawn from one seed, which is
printed. Counts are written to bench/results/campaign.json.
"""
