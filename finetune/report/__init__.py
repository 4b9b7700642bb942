"""What people are shown: tables on stdout, and a page with figures."""
