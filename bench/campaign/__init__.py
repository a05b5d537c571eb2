"""An attack on results folders and on input: `python -m bench.campaign`.

Six parts, each drawn from one printed seed: processes killed in the middle of their work
(`kills`), two processes on one folder (`pairs`), damaged files (`damages`), flipped bytes that are
read (`flips`), malformed command lines (`commands`) and malformed calls (`calls`).
Figures go to bench/results/campaign.json.
"""
