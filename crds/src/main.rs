//! Prints the `CustomResourceDefinition` of `CdcPipeline` as YAML, made from the Rust types.

fn main() -> Result<(), serde_yaml::Error> {
    print!("{}", penstock_crds::crd::yaml()?);
    Ok(())
}
