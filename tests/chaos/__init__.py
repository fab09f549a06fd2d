"""A campaign of kills, damage, limits and fuzz on the tiny run: `make chaos`."""
