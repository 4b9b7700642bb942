"""Results for people: a table, two runs beside each other, a page."""
