import re
s=open('src/lib.rs').read()
names=re.findall(r'\("(\w+)", ([\w:]+)\)',s)
c=open('Cargo.toml').read().split('\n# One program')[0].rstrip()+'\n\n# One program for each entry of TARGETS.\n'
for n,f in names:
    open(f'fuzz_targets/{n}.rs','w').write(f'''#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| agentd_fuzz::{f}(data));
''')
    c+=f'''[[bin]]
name = "{n}"
path = "fuzz_targets/{n}.rs"
required-features = ["libfuzzer"]
test = false
doc = false
bench = false

'''
open('Cargo.toml','w').write(c.rstrip()+'\n')
