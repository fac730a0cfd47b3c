"""What makes a boot a drill: pictures, filesystem checks, an end by itself, turns for everybody."""
