"""Consistency: freezing what is mounted on a disk for a moment, and never leaving it frozen."""
