"""How was the demo family trained? `python -m workers.demo.train PART`, part by part; see `__main__`."""
