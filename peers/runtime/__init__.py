"""The process of one device: it joins the protocol, the learner, the links and the clock."""
