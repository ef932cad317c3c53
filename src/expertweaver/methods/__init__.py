"""Ways to divide an FFN, one file each: a composition of partition, router and repair."""
