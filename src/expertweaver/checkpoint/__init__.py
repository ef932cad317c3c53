"""The output folder: written beside, accounted for, verified, renamed."""
