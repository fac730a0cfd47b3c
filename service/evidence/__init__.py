"""Evidence of drills: what was proven, signed, so that it can be checked with the public key alone."""
