"""`python -m bench`: what Understudy promises about speed, measured beside what one would pick instead."""
