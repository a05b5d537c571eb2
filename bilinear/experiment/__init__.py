"""What is trained: the task, its configs and studies, schedules, initial weights, records."""
