"""Manager API: decides who may download, and mints the tokens that say so."""
