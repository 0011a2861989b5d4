//! What an image has printed, scene by scene.

use std::path::Path;

/// One line a scene: its name, a colon and a space, what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace(Vec<(String, String)>);

impl Trace {
    pub fn of(printed: &str) -> Self {
        let lines = printed.lines().map(|line| line.trim_end_matches('\r'));
        let scenes = lines.filter(|line| !line.is_empty() && !line.starts_with("//"));
        Self(scenes.map(Self::scene).collect())
    }

    fn scene(line: &str) -> (String, String) {
        let (name, found) = line.split_once('|').unwrap_or((line, ""));
        (name.trim_end().to_owned(), found.trim().to_owned())
    }

    /// What the manuals say.
    pub fn expected(image: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/processor/expected")
            .join(format!("{image}.txt"));
        Self::of(&std::fs::read_to_string(path).unwrap())
    }

    /// The scenes that `other` has too.
    pub fn scenes_of(self, other: &Self) -> Self {
        Self(self.0.into_iter().filter(|(name, _)| other.has(name)).collect())
    }

    pub fn has(&self, scene: &str) -> bool {
        self.0.iter().any(|(name, _)| name == scene)
    }

    /// With EFLAGS.RF clear in every pushed frame: QEMU never sets it there (SDM Vol. 3, Instruction-Breakpoint
    /// Exception Condition, says where it is set).
    pub fn without_rf(&self) -> Self {
        let clear = |found: &str| {
            let mut frame = 0;
            let words = found.split(' ').map(|word| {
                if word.starts_with('#') {
                    frame = 3;
                }
                frame = u32::saturating_sub(frame, 1);
                // CR2 or DR6 may follow at once.
                let (flags, rest) = word.split_at_checked(8).unwrap_or((word, ""));
                match u32::from_str_radix(flags, 16) {
                    Ok(flags) if frame == 0 => format!("{:08x}{rest}", flags & !0x1_0000),
                    _ => word.to_owned(),
                }
            });
            words.collect::<Vec<_>>().join(" ")
        };
        Self(
            self.0
                .iter()
                .map(|(name, found)| (name.clone(), clear(found)))
                .collect(),
        )
    }

    /// The first scene in which `other` is not the same, but for those in `apart`, for people.
    pub fn difference(&self, other: &Self, apart: &[&str]) -> Option<String> {
        for (index, (name, expected)) in self.0.iter().enumerate() {
            let Some((_, found)) = other.0.get(index).filter(|(other, _)| other == name) else {
                return Some(format!("scene {name:?} is not there"));
            };
            if found == expected || apart.contains(&name.as_str()) {
                continue;
            }
            let pairs = expected.split(' ').zip(found.split(' '));
            let same = pairs
                .take_while(|(a, b)| a == b)
                .map(|(a, _)| a.len() + 1)
                .sum::<usize>();
            return Some(format!(
                "scene {name:?}\n  after    {}\n  expected {}\n  found    {}",
                &expected[same.saturating_sub(80).min(expected.len())..same.min(expected.len())],
                clip(&expected[same.min(expected.len())..]),
                clip(&found[same.min(found.len())..])
            ));
        }
        (self.0.len() != other.0.len()).then(|| format!("{} scenes instead of {}", other.0.len(), self.0.len()))
    }
}

fn clip(text: &str) -> &str {
    &text[..text.len().min(200)]
}
