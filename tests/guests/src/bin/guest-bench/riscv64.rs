axvm_guests::entry!(main);
fn main() {}
