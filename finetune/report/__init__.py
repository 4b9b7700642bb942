"""Reports for people: tables on stdout, and a page with plots."""
