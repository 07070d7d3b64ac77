"""Pages, the JSON API and the live socket."""
