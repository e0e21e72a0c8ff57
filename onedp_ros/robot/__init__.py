"""The arm. Modules are imported by name: launch files import :data:`MODES` on a Python without NumPy."""

MODES = ("cartesian_pose", "cartesian_impedance")
