"""`carina`, the command line. Sub-commands, flags and columns follow `ctr` where it has them."""
