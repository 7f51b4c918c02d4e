"""shimd: one small process that holds the containers of a group, installed as containerd-shim-carina-v1."""
