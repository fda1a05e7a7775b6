"""`darts simulate`: runs in virtual time, and the tables that are made of them."""
