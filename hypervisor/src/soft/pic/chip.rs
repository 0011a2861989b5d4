//! One 8259A: eight request lines, a mask, priorities, and the commands that shape them (Intel 8259A data sheet).

mod state;

/// One interrupt controller of the pair.
#[derive(Debug, Clone)]
pub struct Chip {
    /// The levels of the request lines.
    lines: u8,
    /// Which lines are level-triggered: the chipset's edge/level control register.
    elcr: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    /// The line of the lowest priority; the one after it has the highest.
    lowest: u8,
    vector_base: u8,
    /// The initialisation command word that is expected next; 0 if none is.
    expects: u8,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotates_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    reads_isr: bool,
    polled: bool,
    /// True for the chip whose line 2 is the other one's output.
    master: bool,
}

impl Chip {
    /// A chip before its first initialisation: every line is masked, so that it asks for nothing.
    pub fn new(master: bool) -> Self {
        Self {
            lines: 0,
            elcr: 0,
            irr: 0,
            isr: 0,
            imr: 0xff,
            lowest: 7,
            vector_base: 0,
            expects: 0,
            needs_icw4: false,
            single: false,
            auto_eoi: false,
            rotates_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            reads_isr: false,
            polled: false,
            master,
        }
    }

    /// Sets request line `line` (taken modulo 8).
    ///
    /// An edge is latched until it is acknowledged, even if the line falls before: the chip would then give the spurious
    /// vector, which no source here means when it pulses its line.
    pub fn set_line(&mut self, line: u8, level: bool) {
        let bit = 1 << (line & 7);
        let rises = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if self.elcr & bit != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if rises {
            self.irr |= bit;
        }
    }

    /// The edge/level control register.
    pub fn elcr(&self) -> u8 {
        self.elcr
    }

    /// Writes the edge/level control register.
    pub fn set_elcr(&mut self, elcr: u8) {
        let changed = self.elcr ^ elcr;
        self.elcr = elcr;
        // A line that becomes level-triggered requests by its level; one that becomes edge-triggered has seen none yet.
        self.irr = self.irr & !changed | self.lines & elcr & changed;
    }

    /// The line that would be acknowledged now; while there is one, the INT output is up.
    pub fn request(&self) -> Option<u8> {
        let highest = self.first(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && self.master {
            // The slave may interrupt again while one of its lines is in service.
            in_service &= !(1 << 2);
        }
        match self.first(in_service) {
            Some(serving) if self.rank(serving) <= self.rank(highest) => None,
            _ => Some(highest),
        }
    }

    /// The first acknowledge cycle: freezes the priorities and takes the line into service; line 7 if there is no
    /// request any more, which is then not in service.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.request() else { return 7 };
        let bit = 1 << line;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotates_on_auto_eoi {
            self.lowest = line;
        }
        line
    }

    /// The vector of `line`: the second acknowledge cycle.
    pub fn vector(&self, line: u8) -> u8 {
        self.vector_base | line & 7
    }

    /// Reads at address line A0 = `data`.
    pub fn read(&mut self, data: bool) -> u8 {
        if std::mem::take(&mut self.polled) {
            // A poll acknowledges: bit 7 tells whether there was a request.
            return match self.request() {
                Some(_) => 0x80 | self.acknowledge(),
                None => 0,
            };
        }
        match (data, self.reads_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    /// Writes at address line A0 = `data`.
    pub fn write(&mut self, data: bool, value: u8) {
        match (data, self.expects) {
            (false, _) if value & 0x10 != 0 => self.initialise(value),
            (false, _) if value & 0x08 == 0 => self.end_or_rotate(value),
            (false, _) => self.mode_command(value),
            (true, 2) => {
                self.vector_base = value & 0xf8;
                self.expects = match (self.single, self.needs_icw4) {
                    (false, _) => 3,
                    (true, true) => 4,
                    (true, false) => 0,
                };
            }
            // ICW3 tells which line the slave is on; the wiring of a PC leaves no choice.
            (true, 3) => self.expects = if self.needs_icw4 { 4 } else { 0 },
            (true, 4) => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                self.expects = 0;
            }
            (true, _) => self.imr = value,
        }
    }

    /// ICW1.
    fn initialise(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            elcr: self.elcr,
            // Edges have to rise again; a level still requests.
            irr: self.lines & self.elcr,
            imr: 0,
            vector_base: self.vector_base,
            expects: 2,
            needs_icw4: value & 0x01 != 0,
            single: value & 0x02 != 0,
            ..Self::new(self.master)
        };
    }

    /// OCW2.
    fn end_or_rotate(&mut self, value: u8) {
        let (rotate, specific, end) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        let line = match (specific, end) {
            (true, _) => Some(value & 7),
            // The highest in service; in special mask mode a masked one is not for this command to end.
            (false, true) => self.first(if self.special_mask {
                self.isr & !self.imr
            } else {
                self.isr
            }),
            (false, false) => {
                self.rotates_on_auto_eoi = rotate;
                None
            }
        };
        let Some(line) = line else { return };
        if end {
            self.isr &= !(1 << line);
        }
        if rotate {
            self.lowest = line;
        }
    }

    /// OCW3.
    fn mode_command(&mut self, value: u8) {
        self.polled = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.reads_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    /// The line of the highest priority in `set`.
    fn first(&self, set: u8) -> Option<u8> {
        (1..=8)
            .map(|step| self.lowest.wrapping_add(step) & 7)
            .find(|line| set & 1 << line != 0)
    }

    /// How far `line` is from the highest priority: 0 to 7.
    fn rank(&self, line: u8) -> u8 {
        line.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }
}
