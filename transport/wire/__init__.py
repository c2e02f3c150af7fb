"""Messages as bytes: types, packing, fragments, tensor codecs, and the limits that are checked first."""
