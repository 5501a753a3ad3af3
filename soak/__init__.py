"""Long trials of the product against the sandbox: kills, shared limits, storms, long histories, broken servers."""
