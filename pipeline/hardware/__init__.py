"""What hardware costs: seconds of engines, learners and their links, by formula or measured.

The coordinator plans with these figures, the simulator spends them in virtual time, and a paced
run waits for them in real time. Nothing here has a clock.
"""
