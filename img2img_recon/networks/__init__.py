"""Networks made of MLPs, their rivals, and the table of all of them."""
