"""The simulated cell, in MuJoCo."""
