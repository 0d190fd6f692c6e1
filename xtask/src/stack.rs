//! The stack that the eBPF programs need. The kernel gives 512 bytes to a program
//! and all functions it calls.
//!
//! Kernels count a call differently, so a program that loads on this kernel may
//! be refused by another one.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind};

/// `MAX_BPF_STACK` in include/linux/filter.h.
const LIMIT: u32 = 512;

/// The unit that the stack of each function is rounded up to. `round_up` in
/// `check_max_stack_depth` of kernel/bpf/verifier.c has 32 until Linux 6.1 at
/// least, later kernels have 16.
const STEP: u32 = 32;

/// A place in the object: the number of a section, and bytes into it.
type Place = (usize, u64);

/// A function of the object.
struct Function {
    name: String,
    end: u64,
    bytes: u32,
    calls: Vec<Place>,
}

/// Fails when a program needs more stack than older kernels give.
pub fn check(object: &[u8]) -> Result<()> {
    let functions = functions(object)?;
    let mut over = Vec::new();
    for (place, function) in &functions {
        let (bytes, chain) = need(&functions, *place)?;
        if bytes > LIMIT {
            over.push(format!(
                "{} needs {bytes} bytes of stack on older kernels, which give {LIMIT}: {}",
                function.name,
                chain.join(", ")
            ));
        }
    }
    ensure!(over.is_empty(), "{}", over.join("\n"));
    Ok(())
}

/// The bytes that a function needs together with its deepest call, and the
/// functions of that chain. BPF has no recursion.
fn need(functions: &BTreeMap<Place, Function>, place: Place) -> Result<(u32, Vec<String>)> {
    let function = functions
        .get(&place)
        .context("find a function that is called")?;
    let mut deepest = (0, Vec::new());
    for call in &function.calls {
        deepest = deepest.max(need(functions, *call)?);
    }
    let (below, mut chain) = deepest;
    chain.insert(0, format!("{} in {}", function.bytes, function.name));
    Ok((below + function.bytes.max(1).next_multiple_of(STEP), chain))
}

/// All functions of an object, with their stack and calls.
fn functions(object: &[u8]) -> Result<BTreeMap<Place, Function>> {
    let elf = object::File::parse(object).context("parse the object")?;
    let mut functions = BTreeMap::new();
    for symbol in elf.symbols() {
        if let (SymbolKind::Text, Some(section)) = (symbol.kind(), symbol.section_index()) {
            let function = Function {
                name: symbol.name()?.to_owned(),
                end: symbol.address() + symbol.size(),
                bytes: 0,
                calls: Vec::new(),
            };
            functions.insert((section.0, symbol.address()), function);
        }
    }
    for (&(index, start), function) in &mut functions {
        let section = elf.section_by_index(SectionIndex(index))?;
        let targets = relocations(&elf, &section);
        read_instructions((index, start), section.data()?, &targets, function)?;
    }
    Ok(functions)
}

/// The symbols that a section refers to, by the place of the reference.
fn relocations(elf: &object::File, section: &object::Section) -> BTreeMap<u64, Place> {
    let targets = section.relocations().filter_map(|(at, relocation)| {
        let RelocationTarget::Symbol(symbol) = relocation.target() else {
            return None;
        };
        let symbol = elf.symbol_by_index(symbol).ok()?;
        Some((at, (symbol.section_index()?.0, symbol.address())))
    });
    targets.collect()
}

/// Finds the stack and the calls of a function in its instructions.
fn read_instructions(
    (index, start): Place,
    section: &[u8],
    targets: &BTreeMap<u64, Place>,
    function: &mut Function,
) -> Result<()> {
    let mut copies_of_r10 = [false; 16];
    let mut at = start;
    while at < function.end {
        let code = usize::try_from(at)?;
        let code: [u8; 8] = section
            .get(code..code + 8)
            .and_then(|code| code.try_into().ok())
            .context("read an instruction")?;
        let [op, registers, ..] = code;
        let (dst, src) = (usize::from(registers & 15), usize::from(registers >> 4));
        let offset = i32::from(i16::from_le_bytes([code[2], code[3]]));
        let immediate = i32::from_le_bytes([code[4], code[5], code[6], code[7]]);
        match op {
            // r = r
            0xbf => copies_of_r10[dst] = src == 10,
            // r += immediate
            0x07 if copies_of_r10[dst] => function.use_stack(immediate),
            // A call of a function in the object. The immediate counts from the
            // next instruction, or from the start of the section when the
            // relocation names the section as a whole.
            0x85 if src == 1 => {
                let next = i64::try_from(at)? + 8 + i64::from(immediate) * 8;
                let call = match targets.get(&at) {
                    None => (index, u64::try_from(next)?),
                    Some(&(section, 0)) if immediate != -1 => {
                        (section, u64::try_from((i64::from(immediate) + 1) * 8)?)
                    }
                    Some(&place) => place,
                };
                function.calls.push(call);
            }
            // Loads and stores.
            _ if op & 7 == 1 && src == 10 => function.use_stack(offset),
            _ if matches!(op & 7, 2 | 3) && dst == 10 => function.use_stack(offset),
            _ => {}
        }
        // A constant of 64 bits takes two instructions.
        at += if op == 0x18 { 16 } else { 8 };
    }
    Ok(())
}

impl Function {
    /// Counts an access to the stack, which lies at negative offsets.
    fn use_stack(&mut self, offset: i32) {
        if offset < 0 {
            self.bytes = self.bytes.max(offset.unsigned_abs());
        }
    }
}
