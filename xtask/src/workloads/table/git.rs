//! git: in the workspace, in a repository that was there before, and over the proxy.

use crate::workloads::workload::{Network, Workload};

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "git-local",
        needs: &["git"],
        run: r#"
            export GIT_AUTHOR_NAME=agent GIT_AUTHOR_EMAIL=a@localhost GIT_COMMITTER_NAME=agent GIT_COMMITTER_EMAIL=a@localhost
            git init -q -b main repo; cd repo
            commit() { echo "$1" >> "$2"; git add -A; git commit -qm "$1"; }
            commit one a; commit two a; git switch -qc topic HEAD~1; commit three b; git rebase -q main
            echo dirty >> a; git stash -q; git merge -q --no-ff -m merge main; git stash pop -q; git checkout -q -- a
            git switch -q main; git merge -q topic; git tag -a v1 -m v1; git worktree add -q ../tree topic~1
            git init -q -b main --bare ../remote.git; git remote add origin ../remote.git; git push -q --tags origin main
            git clone -q ../remote.git ../clone; git -C ../clone log --format=%s > ../log
            git bisect start HEAD HEAD~2; git bisect run false; git bisect reset; git gc -q; git fsck --strict
        "#,
        check: r#"
            [ "$(tr '\n' ' ' < log)" = 'three two one ' ]; git -c safe.directory='*' -C remote.git fsck --strict
            [ "$(git -c safe.directory='*' -C repo rev-parse main)" = "$(git -c safe.directory='*' -C remote.git rev-parse main)" ]
        "#,
        ..Workload::PLAIN
    },
    Workload {
        name: "git-existing",
        needs: &["git"],
        prepare: r#"
            git init -q -b main .; echo one > file; git add file
            git -c user.name=you -c user.email=you@localhost commit -qm one; ls .git/hooks > ../hooks.before
        "#,
        run: r#"
            git status --short; echo two >> file; git add file
            git -c user.name=agent -c user.email=agent@localhost commit -qm two; git reset -q --soft HEAD~1
            git -c user.name=agent -c user.email=agent@localhost commit -qm 'two again'
        "#,
        check: r#"
            [ "$(git -c safe.directory='*' log --format=%s | tr '\n' ' ')" = 'two again one ' ]
            git -c safe.directory='*' diff --quiet HEAD; ls .git/hooks | cmp - ../hooks.before
        "#,
        ..Workload::PLAIN
    },
    Workload {
        name: "git-config",
        needs: &["git"],
        prepare: r#"
            git init -q -b main .; echo one > file; git add file
            git -c user.name=you -c user.email=you@localhost commit -qm one; cp .git/config ../config.before
        "#,
        run: r#"
            git config user.name agent; git config user.email agent@localhost; git init -q --bare remote.git
            git remote add origin "$PWD/remote.git"; git switch -qc topic; echo two >> file; git commit -qam two
            git push -qu origin topic; [ "$(git config branch.topic.remote)" = origin ]; git branch -qu origin/topic main
            git remote rename origin there; git config --unset user.name; git branch -qm topic other
            [ -z "$(git status --porcelain --untracked-files=no)" ]; git rev-parse there/topic
        "#,
        check: r#"
            cmp .git/config ../config.before
            [ "$(git -c safe.directory='*' -C remote.git log --format=%s topic | tr '\n' ' ')" = 'two one ' ]
            [ "$(git -c safe.directory='*' log -1 --format=%an%ae other)" = 'agentagent@localhost' ]
        "#,
        ..Workload::PLAIN
    },
    Workload {
        name: "git-placeholders",
        needs: &["git"],
        prepare: r#"
            git init -q -b main .; echo one > file; git add file
            git -c user.name=you -c user.email=you@localhost commit -qm one
        "#,
        run: r#"
            [ -d .envrc ] && [ -d .vscode ]; [ -z "$(git status --porcelain --ignored)" ]; git add -A; git diff --cached --quiet
            echo dirty >> file; git -c user.name=a -c user.email=a@localhost stash -q; [ -z "$(git status --porcelain)" ]
        "#,
        check: r#"
            [ "$(ls -A | tr '\n' ' ')" = '.git file ' ]; git -c safe.directory='*' diff --quiet HEAD
        "#,
        ..Workload::PLAIN
    },
    Workload {
        name: "git-http",
        needs: &["git"],
        network: Network::StandIn,
        prepare: r#"
            git init -q -b main seed; echo one > seed/file; git -C seed add file
            git -C seed -c user.name=you -c user.email=you@localhost commit -qm one
            rm -rf "$HOST/git/project.git"; git clone -q --bare seed "$HOST/git/project.git"
            git -C "$HOST/git/project.git" config http.receivepack true
        "#,
        run: r#"
            git clone -q "$URL/git/project.git" clone; cd clone; git switch -qc agent; seq 100000 > numbers; git add numbers
            git -c user.name=agent -c user.email=agent@localhost commit -qm numbers
            git push -q origin agent; git fetch -q; git ls-remote origin
        "#,
        check: r#"
            [ "$(git -C "$HOST/git/project.git" log --format=%s agent | tr '\n' ' ')" = 'numbers one ' ]
            git -C "$HOST/git/project.git" show agent:numbers | cmp - clone/numbers
        "#,
        ..Workload::PLAIN
    },
];
