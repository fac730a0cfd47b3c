"""Dedupe within a tenant: a block that another replica volume holds already is copied at the site, not sent again."""
