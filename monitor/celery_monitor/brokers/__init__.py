"""What a broker and its workers can be asked, per transport; nothing here changes a cluster."""
