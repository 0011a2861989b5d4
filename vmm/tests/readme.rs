//! What the README shows is what is compiled.

#[test]
fn the_readme_shows_the_embedding_example_as_it_is() {
    let readme = include_str!("../../README.md");
    assert!(readme.contains(include_str!("../examples/embed.rs").trim_end()));
}
