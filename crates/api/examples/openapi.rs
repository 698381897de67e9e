//! Prints the description of the API, as `openapi/atoll.json` holds it.
#![expect(clippy::print_stdout, reason = "that is what it is for")]

fn main() -> Result<(), serde_json::Error> {
    println!("{}", serde_json::to_string_pretty(&api::document())?);
    Ok(())
}
