"""How models are trained: backends, the run of a sweep or a study, its chunks."""
