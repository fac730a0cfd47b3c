"""`make demo`: the whole arc on one machine. No part of the product; it knows the product by its command lines only."""
