"""Messages of palisade.plugin.v1, made by generate.py."""
