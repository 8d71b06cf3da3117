//! NVIDIA's runtime compiler, with a memory: the same library under the name `libnvrtc.so`.
//!
//! `EMULATOR_NVRTC` names the real `libnvrtc.so`, and `EMULATOR_NVRTC_CACHE` a folder that keeps PTX by source and options, but for the
//! paths of headers: another machine has them elsewhere. A file that is used gets the time of its use. CubeCL
//! declares types and variables, and places arrays in shared memory, in an order that differs from run to run. So these lines
//! count without their order, and arrays without their place: any of its orders is a valid program.
#![allow(non_snake_case, reason = "the names are NVRTC's")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;
use siphasher::sip::SipHasher13;

const SUCCESS: c_int = 0;
/// `NVRTC_ERROR_INTERNAL_ERROR`.
const INTERNAL_ERROR: c_int = 11;

/// How an option begins that says where headers are.
const HEADERS: &[u8] = b"--include-path=";

/// A program: its source, and once it is compiled its PTX.
pub struct Program {
    source: CString,
    ptx: Vec<u8>,
    log: Vec<u8>,
}

macro_rules! entry_points {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of NVRTC.")]
            ///
            /// # Safety
            /// Pointers are valid for what NVRTC's documentation says about them.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
                let _ = ($($argument,)*);
                // SAFETY: the caller passes what NVRTC's documentation asks for.
                unsafe { $body }
            }
        )*
    };
}

entry_points! {
    nvrtcVersion(major: *mut c_int, minor: *mut c_int) { *major = 13; *minor = 0; SUCCESS }
    nvrtcCreateProgram(
        program: *mut *mut Program, source: *const c_char, name: *const c_char, headers: c_int,
        header_sources: *const *const c_char, header_names: *const *const c_char,
    ) {
        let source = CStr::from_ptr(source).to_owned();
        *program = Box::into_raw(Box::new(Program { source, ptx: Vec::new(), log: vec![0] }));
        SUCCESS
    }
    nvrtcDestroyProgram(program: *mut *mut Program) { drop(Box::from_raw(*program)); SUCCESS }
    nvrtcCompileProgram(program: *mut Program, count: c_int, options: *const *const c_char) {
        let options: Vec<_> = (0..count as usize).map(|index| CStr::from_ptr(*options.add(index)).to_owned()).collect();
        (*program).compile(&options)
    }
    nvrtcGetPTXSize(program: *const Program, size: *mut usize) { *size = (&*program).ptx.len(); SUCCESS }
    nvrtcGetPTX(program: *const Program, ptx: *mut u8) { copy(&(&*program).ptx, ptx) }
    nvrtcGetProgramLogSize(program: *const Program, size: *mut usize) { *size = (&*program).log.len(); SUCCESS }
    nvrtcGetProgramLog(program: *const Program, log: *mut u8) { copy(&(&*program).log, log) }
}

/// `nvrtcGetErrorString` of NVRTC.
#[unsafe(no_mangle)]
pub extern "C" fn nvrtcGetErrorString(error: c_int) -> *const c_char {
    if error == SUCCESS { c"NVRTC_SUCCESS" } else { c"NVRTC failed; its log says why" }.as_ptr()
}

/// # Safety
/// `to` has as many bytes.
unsafe fn copy(bytes: &[u8], to: *mut u8) -> c_int {
    // SAFETY: the caller says so.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    SUCCESS
}

impl Program {
    fn compile(&mut self, options: &[CString]) -> c_int {
        let path = std::env::var_os("EMULATOR_NVRTC_CACHE")
            .map(|folder| PathBuf::from(folder).join(format!("{:016x}.ptx", self.key(options))));
        if let Some((path, ptx)) = path.as_ref().and_then(|path| Some((path, std::fs::read(path).ok()?))) {
            self.ptx = ptx;
            if let Err(error) = self.note_use(path) {
                eprintln!("emulator: {}: {error}", path.display());
            }
            return SUCCESS;
        }
        let code = match self.compile_with(options) {
            Ok(code) => code,
            Err(reason) => {
                self.log = [reason.as_bytes(), &[0]].concat();
                INTERNAL_ERROR
            }
        };
        if let (SUCCESS, Some(path)) = (code, path) {
            // Written under another name first, so that another process never reads half of it.
            let whole = path.with_extension(format!("{}.{:p}", std::process::id(), self));
            let written = self
                .write_source(&path)
                .and_then(|()| std::fs::write(&whole, &self.ptx))
                .and_then(|()| std::fs::rename(&whole, &path));
            if let Err(error) = written {
                eprintln!("emulator: {}: {error}", path.display());
            }
        }
        code
    }

    /// Gives the file the time of its use.
    fn note_use(&self, path: &Path) -> std::io::Result<()> {
        if !path.with_extension("cu").exists() {
            self.write_source(path)?;
        }
        std::fs::File::options().append(true).open(path)?.set_modified(std::time::SystemTime::now())
    }

    /// Writes the source next to the PTX, for people who look for the line of a fault.
    fn write_source(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path.with_extension("cu"), self.source.as_bytes())
    }

    /// The same for sources that differ in the order of declarations only. Lines outside of a kernel, and declarations of shared
    /// memory and of variables without a value, are counted; the others are in order.
    fn key(&self, options: &[CString]) -> u64 {
        let source = self.source.to_string_lossy();
        let (mut declarations, mut code) = (HashMap::<&str, usize>::new(), Vec::new());
        const SHARED: &str = "dynamic_shared_mem[";
        let mut in_kernel = false;
        for line in source.lines() {
            in_kernel |= line.contains("__global__");
            let declares = line.contains("dynamic_shared_mem")
                || line.starts_with("// Shared")
                || line.contains(" l_") && !line.contains(['=', '(']);
            let line = line.find(SHARED).map_or(line, |at| &line[..at + SHARED.len()]);
            match in_kernel && !declares {
                true => code.push(line),
                false => *declarations.entry(line).or_default() += 1,
            }
        }
        let mut declarations: Vec<_> = declarations.into_iter().collect();
        declarations.sort_unstable();
        // The archive of PTX has these numbers in its names, so they may not depend on the compiler.
        let mut hasher = SipHasher13::new();
        let options: Vec<_> = options.iter().filter(|option| !option.as_bytes().starts_with(HEADERS)).collect();
        (declarations, code, options).hash(&mut hasher);
        hasher.finish()
    }

    /// Adds a comment to the PTX: what [`noted_shared_bytes`] reads.
    fn note_shared_bytes(&mut self) {
        while self.ptx.pop_if(|last| *last == 0).is_some() {}
        let bytes = shared_bytes(&self.source.to_string_lossy());
        self.ptx.extend(format!("\n{NOTE}{bytes}\n\0").into_bytes());
    }

    fn compile_with(&mut self, options: &[CString]) -> Result<c_int, String> {
        type Handle = *mut std::ffi::c_void;
        let library = library()?;
        let find = |error: libloading::Error| format!("the real NVRTC: {error}");
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let none = std::ptr::null();
        let mut program: Handle = std::ptr::null_mut();
        // SAFETY: the functions are NVRTC's and have these types; every pointer is valid for the call, and buffers are as large as
        // the function before them said.
        unsafe {
            let create =
                library
                    .get::<unsafe extern "C" fn(
                        *mut Handle,
                        *const c_char,
                        *const c_char,
                        c_int,
                        *const u8,
                        *const u8,
                    ) -> c_int>(b"nvrtcCreateProgram")
                    .map_err(find)?;
            let compile = library
                .get::<unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int>(b"nvrtcCompileProgram")
                .map_err(find)?;
            let size =
                |name: &[u8]| library.get::<unsafe extern "C" fn(Handle, *mut usize) -> c_int>(name).map_err(find);
            let text = |name: &[u8]| library.get::<unsafe extern "C" fn(Handle, *mut u8) -> c_int>(name).map_err(find);
            let destroy =
                library.get::<unsafe extern "C" fn(*mut Handle) -> c_int>(b"nvrtcDestroyProgram").map_err(find)?;
            let read = |size_name: &[u8], name: &[u8], program: Handle| -> Result<Vec<u8>, String> {
                let mut bytes = 0;
                size(size_name)?(program, &mut bytes);
                let mut found = vec![0; bytes];
                text(name)?(program, found.as_mut_ptr());
                Ok(found)
            };
            let code = create(&mut program, self.source.as_ptr(), std::ptr::null(), 0, none, none);
            if code != SUCCESS {
                return Err(format!("the real NVRTC refuses a program with error {code}"));
            }
            let code = compile(program, pointers.len() as c_int, pointers.as_ptr());
            self.log = read(b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog", program)?;
            if code == SUCCESS {
                self.ptx = read(b"nvrtcGetPTXSize", b"nvrtcGetPTX", program)?;
                self.note_shared_bytes();
            }
            destroy(&mut program);
            Ok(code)
        }
    }
}

/// What stands before the bytes of shared memory in the comment at the end of PTX.
const NOTE: &str = "// bytes of shared memory: ";

/// Bytes of shared memory that the places in PTX need, as [`Program`] noted. Places leave gaps of different sizes in different orders, and
/// a launch has as many bytes as the order of its own source needs; the PTX may be of another.
pub fn noted_shared_bytes(ptx: &str) -> usize {
    ptx.trim_end().rsplit_once(NOTE).and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(0)
}

/// Bytes of shared memory that a source of CubeCL's needs: it says the size of each array in the line before its place.
fn shared_bytes(source: &str) -> usize {
    let number =
        |text: &str| text.split(|c: char| !c.is_ascii_digit()).next_back().and_then(|digits| digits.parse().ok());
    let (mut bytes, mut end) = (0, 0);
    for line in source.lines() {
        if let Some(size) = line.strip_prefix("// Shared").and_then(|line| line.strip_suffix(" bytes")) {
            bytes = number(size).unwrap_or(0);
        } else if let Some((_, place)) = line.split_once("dynamic_shared_mem[") {
            let place: Option<usize> = place.split_once(']').and_then(|(place, _)| place.parse().ok());
            end = end.max(place.map_or(0, |place| place + bytes));
        }
    }
    end
}

/// The real library.
fn library() -> Result<&'static Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let open = || {
        let path =
            std::env::var_os("EMULATOR_NVRTC").ok_or("set `EMULATOR_NVRTC` to the path of the real `libnvrtc.so`")?;
        // SAFETY: NVIDIA's library may be loaded by any thread and has no other requirements.
        unsafe { Library::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))
    };
    LIBRARY.get_or_init(open).as_ref().map_err(String::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(declarations: &str) -> u64 {
        let source = format!("extern \"C\" __global__ void k() {{\n{declarations}\nfloat l_1;\nl_1 = 2.0;\n}}");
        Program { source: CString::new(source).unwrap(), ptx: Vec::new(), log: Vec::new() }.key(&[])
    }

    #[test]
    fn the_order_of_arrays_does_not_count() {
        let array =
            |place: usize| format!("// Shared array size: 8, 128 bytes\nfloat *a_1 = &dynamic_shared_mem[{place}];\n");
        let barrier =
            |place: usize| format!("// Shared value size: 8 bytes\nbarrier &a_2 = dynamic_shared_mem[{place}];\n");
        let (last, first) = (format!("{}{}", array(0), barrier(128)), format!("{}{}", barrier(0), array(128)));
        assert_eq!(key(&last), key(&first));
        assert_ne!(key(&last), key(&array(0)));
        let program = Program { source: c"".into(), ptx: Vec::new(), log: Vec::new() };
        let with = |option: &CStr| program.key(&[option.to_owned()]);
        assert_eq!(with(c"--include-path=/a"), with(c"--include-path=/b"));
        assert_ne!(with(c"-arch=a"), with(c"-arch=b"));
        assert_eq!([&last, &first].map(|source| shared_bytes(source)), [136, 256], "a gap of 120 bytes");
    }

    #[test]
    fn the_bytes_of_shared_memory_are_noted_in_the_ptx() {
        let source = "// Shared array size: 8, 128 bytes\nfloat *a_1 = &dynamic_shared_mem[32];";
        let mut program =
            Program { source: CString::new(source).unwrap(), ptx: b".version 9.0\0".into(), log: Vec::new() };
        program.note_shared_bytes();
        assert_eq!(program.ptx.last(), Some(&0));
        let ptx = CStr::from_bytes_with_nul(&program.ptx).unwrap().to_str().unwrap();
        assert_eq!(noted_shared_bytes(ptx), 160);
        assert_eq!(noted_shared_bytes(".version 9.0\n"), 0);
    }
}
