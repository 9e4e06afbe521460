"""What an evaluation is tested for before it is believed."""
