"""What a run will take, before it is started: `plan.py`."""
