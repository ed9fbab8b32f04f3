"""The proxy's listeners: client API and RPC API. The only floor that sees requests and responses."""
