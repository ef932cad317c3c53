"""Stock architectures a converted model is written as; one file each."""
