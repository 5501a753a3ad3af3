"""Long trials of the whole product against the sandbox: kills, shared limits, storms, long histories, broken servers."""
